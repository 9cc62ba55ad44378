"""Many ranks that train one model: who is there, who computes what, and where their state is kept."""
