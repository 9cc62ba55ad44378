"""Objects under keys: directories and S3 buckets, where a job's things lie in them, and what nodes keep of them."""
