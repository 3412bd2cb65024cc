"""A model as a web service: `minibert serve`.  README.md says what it answers, and how it works."""
