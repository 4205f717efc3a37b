"""From a run spec to a CustomJob and back."""
