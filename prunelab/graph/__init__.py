"""Which channels are coupled: `trace` finds them, `surgery` cuts them."""
