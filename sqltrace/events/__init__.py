"""From records to events."""
