"""What is coupled: the channel graph, its groups, and why channels live and die together."""
