"""What engines are made of: the admission before each, and the parts of vLLM and of engines over HTTP."""
