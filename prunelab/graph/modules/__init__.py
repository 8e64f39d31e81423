"""What is known of modules: attributes that state a width, and the one that selects channels."""
