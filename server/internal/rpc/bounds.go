package rpc

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"deputy.example/deputy/client/delegation"
	"deputy.example/deputy/server/internal/exchange"
)

// maxElements bounds every list in a message, as a form bounds its parameters.
const maxElements = 128

const maxStandardName = 256

// fits refuses a message in which a text is longer than the bound of its field, or a list is longer
// than maxElements. A field without a bound may hold no text.
func fits(m proto.Message) error { return fitsWithin(m.ProtoReflect(), "") }

func fitsWithin(m protoreflect.Message, path string) (err error) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		name := path + string(field.Name())
		switch {
		case field.IsMap():
			err = delegation.Refuse(delegation.ParameterUnsupported, name, "this server does not take maps")
		case field.IsList():
			list := value.List()
			if list.Len() > maxElements {
				err = delegation.Refuse(delegation.ParameterInvalid, name, "must have at most %d elements", maxElements)
			}
			for i := 0; i < list.Len() && err == nil; i++ {
				err = valueFits(field, list.Get(i), path)
			}
		default:
			err = valueFits(field, value, path)
		}
		return err == nil
	})
	return err
}

func valueFits(field protoreflect.FieldDescriptor, value protoreflect.Value, path string) error {
	name := string(field.Name())
	switch field.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return fitsWithin(value.Message(), within(path, name))
	case protoreflect.StringKind:
		return exchange.Fits(path+name, len(value.String()), bound(field))
	case protoreflect.BytesKind:
		return exchange.Fits(path+name, len(value.Bytes()), bound(field))
	}
	return nil // numbers, booleans and enum values have the size of their kind
}

// bound returns the bound of a field of deputy.v1 by its name. The fields of the standard services
// hold names only.
func bound(field protoreflect.FieldDescriptor) int {
	if strings.HasPrefix(string(field.FullName()), "grpc.") {
		return maxStandardName
	}
	return exchange.Bound(string(field.Name()))
}

// within returns the prefix by which errors name what is in a field. Parameters of RFC 8693 and of
// client authentication have their own names in any message, so that gRPC and HTTP name them alike.
func within(path, name string) string {
	switch name {
	case "child", "children", "client":
		return path
	}
	return path + name + "."
}
