"""Other schedulers, each as small as it can be and still decide what the real one does, in the same world as our gate."""
