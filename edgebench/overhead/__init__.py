"""What an adapter costs on a device: its forms against the base alone, and against budgets."""
