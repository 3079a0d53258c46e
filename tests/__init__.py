"""Tests, one folder for each part of sqltrace."""
