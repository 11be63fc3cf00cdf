"""What fits on a GPU and how fast it can be, from shapes and a roofline: computed, not measured."""
