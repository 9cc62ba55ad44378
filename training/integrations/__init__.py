"""Other people's trainers: Hugging Face, Lightning, Ray Train."""
