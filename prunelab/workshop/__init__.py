"""What happens behind the verbs: the network on the bench, the desk that commits, the engine."""
