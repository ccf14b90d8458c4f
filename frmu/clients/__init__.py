"""The client: a site that holds a shard and performs tasks over it. Nothing here knows ray."""
