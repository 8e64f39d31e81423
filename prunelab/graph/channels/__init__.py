"""The channel graph, its groups of coupled channels, and the reasons for the couplings."""
