"""Files that are whole or not there, and the pictures and maps in them."""
