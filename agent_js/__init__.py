"""The Frida agent: JavaScript that sets up, C that does the work."""
