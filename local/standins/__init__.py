"""Stand-ins for the services, one module or folder each. They know neither the product nor the tests."""
