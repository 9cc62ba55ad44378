"""Inside a leased process: a job's code is set up, run, asked to stop, and judged."""
