"""Generated protobuf and gRPC stubs; `make proto` makes them from `proto/`."""
