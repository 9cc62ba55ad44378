"""Its folder goes into PYTHONPATH of jobs: see `sitecustomize`."""
