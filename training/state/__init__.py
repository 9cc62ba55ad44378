"""What a checkpoint holds: what is tracked, captured, written, and put back."""
