"""From a torch module to artifacts that keep its weight ties."""
