"""What is read off the measured rows."""
