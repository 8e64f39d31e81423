"""How channels are followed through a network: labels that move with the tensors."""
