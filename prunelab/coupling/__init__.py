"""How channels are coupled: labels that move through a network, and where and why they meet."""
