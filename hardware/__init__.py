"""What the box is: its accelerators, its clock, its storage. Knows nothing of the appliance."""
