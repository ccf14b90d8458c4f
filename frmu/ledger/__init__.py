"""The system of record: requests, a hash-chained ledger, receipts."""
