package specs_test

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	"fulmar/messages"
	fulmarv1 "fulmar/messages/fulmar/v1"
)

func TestSpecsAreRequests(t *testing.T) {
	specs, err := filepath.Glob("*.yaml")
	if err != nil || len(specs) == 0 {
		t.Fatalf("there are no specs: %v", err)
	}
	for _, spec := range specs {
		t.Run(spec, func(t *testing.T) {
			text, err := os.ReadFile(spec)
			if err != nil {
				t.Fatal(err)
			}
			body, err := yaml.YAMLToJSON(text)
			if err != nil {
				t.Fatal(err)
			}
			r, err := messages.DecodeRequest(fulmarv1.Kind_KIND_DEPLOY, body)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range r.(*fulmarv1.DeployRequest).GetUnits() {
				if f, ok := u.GetImage().GetSource().(*fulmarv1.Image_File); ok { // the command line makes it absolute
					f.File = "/" + f.File
				}
			}
			if _, err := messages.Normalize("web", r.(*fulmarv1.DeployRequest)); err != nil {
				t.Error(err)
			}
		})
	}
}
