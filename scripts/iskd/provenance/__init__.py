"""What an artifact was made from, and how it is published."""
