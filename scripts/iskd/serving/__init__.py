"""What is done with a smaller model afterwards: drafting for its teacher, other file formats."""
