"""What the verifiers of a simulation did, in plain counters."""

from dataclasses import dataclass

from specedge_verifier.step_report import StepReport


@dataclass(slots=True)
class VerifierTotals:
    """Running totals of one verifier.

    Attributes:
        num_steps: forwards.
        num_verifications: sessions that got a verdict, each time counted.
        num_trees: those among them with draft nodes.
        num_nodes, num_accepted, num_committed: draft nodes verified, accepted; tokens committed.
        num_prefill: prompt tokens computed.
    """

    num_steps: int = 0
    num_verifications: int = 0
    num_trees: int = 0
    num_nodes: int = 0
    num_accepted: int = 0
    num_committed: int = 0
    num_prefill: int = 0

    def count(self, report: StepReport) -> None:
        """Adds a finished step."""
        self.num_steps += 1
        self.num_verifications += len(report.queue_s)
        self.num_trees += len(report.accepted_depths)
        self.num_nodes += report.num_nodes
        self.num_accepted += report.num_accepted
        self.num_committed += report.num_committed
        self.num_prefill += report.num_prefill

    def add(self, other: "VerifierTotals") -> None:
        """Adds another verifier's totals."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def since(self, before: "VerifierTotals") -> "VerifierTotals":
        """What has been added since."""
        return VerifierTotals(*(getattr(self, name) - getattr(before, name) for name in self.__slots__))
