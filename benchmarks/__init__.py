"""`make bench`: tables of what observation costs and of what the reader can take.  Timings decide no test."""
