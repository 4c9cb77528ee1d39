"""A real Kubernetes on this machine, without a container engine.

The API server, the scheduler, the controllers, the kubelet and the container runtime are the released
programs, built from Go modules that `dev/tools` pins; only GPU nodes are imitated (by kwok). A mock would
prove that the operator agrees with our idea of Kubernetes, which is what the tests must find out.

    python -m dev.cluster up --nodes samples/nodes/demo.yaml --real-node
"""
