"""What a network costs: counted, priced at any widths, and measured on the clock."""
