"""The process that owns every request's life, hosts the policy and watches the others."""
