"""Methods: how a federation learns and unlearns, each a frozen record of functions without hidden state."""
