"""Labels of one capture, found in another."""
