"""The wire: messages as plain values, their protobuf form, gRPC status codes and channel settings."""
