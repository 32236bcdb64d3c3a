"""From annotations and a field to what a view shows of them."""
