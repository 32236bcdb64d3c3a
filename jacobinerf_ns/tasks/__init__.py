"""What commands do with a trained run: masks, parts, transfers, feature fields, queries."""
