"""Ways to observe a program: base.py is what they have in common."""
