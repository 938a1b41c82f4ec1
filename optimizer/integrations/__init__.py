"""What runs inside other software; nothing here imports it before it is there."""
