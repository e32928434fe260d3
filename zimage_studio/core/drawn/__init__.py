"""The drawn world of the embedded model: its pictures, what is said about them, and questions with known answers."""
