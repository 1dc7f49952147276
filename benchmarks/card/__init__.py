"""What calls cost on a graphics card."""
