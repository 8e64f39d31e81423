"""`trace`: the channel graph of a network, from labels, checked by a probe cut."""
