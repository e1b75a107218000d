"""One- and few-step students: one file a method, and above them what several of them share."""
