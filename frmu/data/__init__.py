"""Records: from a user's Parquet to a client's own shard, and out of it again. The only room that knows pyarrow."""
