"""A session: one network, its data, its history, and the verbs that change it."""
