"""The client: a site that holds a shard and answers work over it. Nothing here knows ray."""
