// A plugin of a node's: `nri-plugin SOCKET NOTES` writes to NOTES what it is told of pods and containers, a line of JSON
// each, and changes the containers of pods that ask for it by an annotation.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

type plugin struct{ notes *json.Encoder }

func (p plugin) note(event string, pod *api.PodSandbox, container *api.Container) error {
	return p.notes.Encode(map[string]any{"event": event, "pod": pod, "container": container})
}

func (p plugin) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("Synchronize", nil, nil)
}

func (p plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RunPodSandbox", pod, nil)
}

func (p plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, _ *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	directory := pod.GetAnnotations()["lab/adjust"]
	if directory == "" {
		return nil, nil, nil
	}
	adjust := &api.ContainerAdjustment{}
	adjust.AddEnv("FROM_PLUGIN", "a value of the plugin's")
	adjust.AddAnnotation("lab/adjusted", "yes")
	adjust.AddMount(&api.Mount{Source: directory, Destination: "/from-plugin", Type: "bind", Options: []string{"rbind", "ro"}})
	adjust.SetLinuxMemoryLimit(96 << 20)
	adjust.AddRlimit("RLIMIT_NOFILE", 777, 777)
	return adjust, nil, nil
}

func (p plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, container *api.Container) error {
	return p.note("PostCreateContainer", pod, container)
}

func run() error {
	notes, err := os.Create(os.Args[2])
	if err != nil {
		return err
	}
	made, err := stub.New(plugin{json.NewEncoder(notes)}, stub.WithPluginName("lab"), stub.WithPluginIdx("10"), stub.WithSocketPath(os.Args[1]))
	if err != nil {
		return err
	}
	return made.Run(context.Background())
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
