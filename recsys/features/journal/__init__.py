"""What users did and were shown, on disk before it is acknowledged."""
