package main

import (
	"fmt"
	"net/netip"
	"time"

	"deputy.example/deputy/client"
	"deputy.example/deputy/client/delegation"
)

// The schema of the events: OCSF 1.3.0, class API Activity. docs/audit-export.md describes the
// mapping.
const (
	ocsfVersion     = "1.3.0"
	ocsfCategory    = 6
	ocsfAPIActivity = 6003
)

type ocsfReport struct {
	ActivityID   int            `json:"activity_id"`
	ActivityName string         `json:"activity_name"`
	CategoryUID  int            `json:"category_uid"`
	CategoryName string         `json:"category_name"`
	ClassUID     int            `json:"class_uid"`
	ClassName    string         `json:"class_name"`
	TypeUID      int            `json:"type_uid"`
	TypeName     string         `json:"type_name"`
	Time         int64          `json:"time"` // milliseconds since 1970
	SeverityID   int            `json:"severity_id"`
	Severity     string         `json:"severity"`
	StatusID     int            `json:"status_id"`
	Status       string         `json:"status"`
	StatusCode   string         `json:"status_code,omitzero"`
	StatusDetail string         `json:"status_detail,omitzero"`
	Message      string         `json:"message"`
	Metadata     ocsfMetadata   `json:"metadata"`
	Actor        ocsfActor      `json:"actor"`
	API          ocsfAPI        `json:"api"`
	SrcEndpoint  ocsfEndpoint   `json:"src_endpoint"`
	Resources    []ocsfResource `json:"resources,omitzero"`
	Unmapped     entryReport    `json:"unmapped"`
}

type ocsfMetadata struct {
	Version        string      `json:"version"`
	Product        ocsfProduct `json:"product"`
	LogName        string      `json:"log_name"`
	UID            string      `json:"uid"`
	Sequence       uint64      `json:"sequence"`
	EventCode      string      `json:"event_code"`
	CorrelationUID string      `json:"correlation_uid,omitzero"`
	LoggedTime     int64       `json:"logged_time"`
}

type ocsfProduct struct {
	Name       string `json:"name"`
	VendorName string `json:"vendor_name"`
}

type ocsfActor struct {
	User ocsfUser `json:"user"`
}

type ocsfUser struct {
	Name   string `json:"name"`
	UID    string `json:"uid,omitzero"`
	Type   string `json:"type"`
	TypeID int    `json:"type_id"`
}

type ocsfAPI struct {
	Operation string      `json:"operation"`
	Service   ocsfService `json:"service"`
}

type ocsfService struct {
	Name string `json:"name"`
}

type ocsfEndpoint struct {
	IP   string `json:"ip,omitzero"`
	Port int    `json:"port,omitzero"`
	Name string `json:"name,omitzero"`
}

type ocsfResource struct {
	UID   string    `json:"uid,omitzero"`
	Name  string    `json:"name,omitzero"`
	Type  string    `json:"type"`
	Owner *ocsfUser `json:"owner,omitzero"`
}

// ocsfActivity is the OCSF activity of a kind of entry.
type ocsfActivity struct {
	id         int
	name       string
	operation  string
	severityID int
}

func activityOf(e *client.Entry) ocsfActivity {
	switch e.Kind {
	case client.KindGrant:
		return ocsfActivity{1, "Create", "Exchange", 1}
	case client.KindCheck:
		return ocsfActivity{2, "Read", "Exchange (validate only)", 1}
	case client.KindVoid:
		return ocsfActivity{4, "Delete", "Void", 1}
	case client.KindRefusal:
		return ocsfActivity{99, "Refuse", "Refuse", 2}
	case client.KindRevocation:
		return activityOfRevocation(e.Revocation)
	case client.KindAdmin:
		return ocsfActivity{3, "Update", "Recover", 5}
	}
	return ocsfActivity{99, "Other", string(e.Kind), 1}
}

func activityOfRevocation(r *delegation.Revocation) ocsfActivity {
	switch {
	case r != nil && r.Target.Kind == delegation.Resume:
		return ocsfActivity{3, "Update", "Resume", 3}
	case r != nil && r.Target.Kind == delegation.BanSuspend:
		return ocsfActivity{4, "Delete", "Suspend", 4}
	}
	return ocsfActivity{4, "Delete", "Revoke", 3}
}

var ocsfSeverities = map[int]string{1: "Informational", 2: "Low", 3: "Medium", 4: "High"}

// ocsfEvent maps an entry to an OCSF event. unmapped holds the whole entry without its state, which
// is not part of the record and changes later.
func ocsfEvent(e *client.Entry, now time.Time) ocsfReport {
	activity := activityOf(e)
	event := ocsfReport{
		ActivityID: activity.id, ActivityName: activity.name,
		CategoryUID: ocsfCategory, CategoryName: "Application Activity", ClassUID: ocsfAPIActivity, ClassName: "API Activity",
		TypeUID: ocsfAPIActivity*100 + activity.id, TypeName: "API Activity: " + activity.name,
		Time: e.Time.UnixMilli(), SeverityID: activity.severityID, Severity: ocsfSeverities[activity.severityID],
		StatusID: 1, Status: "Success", StatusCode: string(e.Reason), StatusDetail: e.Detail, Message: sentence(e),
		Metadata: ocsfMetadata{
			Version: ocsfVersion, Product: ocsfProduct{"Deputy", "Deputy"}, LogName: "ledger", UID: fmt.Sprint(e.Seq), Sequence: e.Seq,
			EventCode: string(e.Kind), CorrelationUID: e.Txn, LoggedTime: now.UnixMilli(),
		},
		Actor: ocsfActor{ocsfPrincipal(e.Caller)}, API: ocsfAPI{activity.operation, ocsfService{"deputy.v1"}}, SrcEndpoint: ocsfPeer(e.Peer),
		Resources: ocsfResources(e), Unmapped: entryJSON(e),
	}
	if e.Outcome == client.OutcomeRefused {
		event.StatusID, event.Status = 2, "Failure"
	}
	event.Unmapped.State, event.Unmapped.RevokedBy = "", 0
	return event
}

func ocsfPrincipal(p delegation.Principal) ocsfUser {
	switch {
	case p == "":
		return ocsfUser{Name: "(erased)", Type: "Unknown", TypeID: 0}
	case p.Type() == "user":
		return ocsfUser{Name: p.ID(), UID: string(p), Type: "User", TypeID: 1}
	}
	return ocsfUser{Name: p.ID(), UID: string(p), Type: p.Type(), TypeID: 99}
}

func ocsfPeer(peer string) ocsfEndpoint {
	if at, err := netip.ParseAddrPort(peer); err == nil {
		return ocsfEndpoint{IP: at.Addr().String(), Port: int(at.Port())}
	}
	if at, err := netip.ParseAddr(peer); err == nil {
		return ocsfEndpoint{IP: at.String()}
	}
	if peer == "" {
		peer = "unknown"
	}
	return ocsfEndpoint{Name: peer}
}

// ocsfResources are the grant, its audiences, and the target of a revocation.
func ocsfResources(e *client.Entry) []ocsfResource {
	var resources []ocsfResource
	if e.JTI != "" {
		r := ocsfResource{UID: e.JTI, Type: "Delegated token"}
		if e.Subject != "" {
			r.Owner = new(ocsfPrincipal(e.Subject))
		}
		resources = append(resources, r)
	}
	for _, audience := range e.Audience {
		resources = append(resources, ocsfResource{Name: audience, Type: "Audience"})
	}
	if target := aimedAt(e); target != "" {
		resources = append(resources, ocsfResource{Name: target, Type: "Revoked"})
	}
	return resources
}

// sentence describes the entry in one sentence.
func sentence(e *client.Entry) string {
	who := name(e.Caller, e, "caller")
	toWhom := fmt.Sprintf("%s for %s", name(e.Actor, e, "actor"), name(e.Subject, e, "subject"))
	switch e.Kind {
	case client.KindGrant:
		return fmt.Sprintf("%s was granted to %s: %s", e.JTI, toWhom, scopeAt(e))
	case client.KindCheck:
		return fmt.Sprintf("%s checked an exchange by %s: %s", who, toWhom, e.Outcome)
	case client.KindRefusal:
		return fmt.Sprintf("%s was refused: %s", who, e.Reason)
	case client.KindVoid:
		return fmt.Sprintf("the grant of entry %d was voided", e.Voids)
	case client.KindRevocation:
		return fmt.Sprintf("%s revoked %s", who, aimedAt(e))
	case client.KindAdmin:
		return "the ledger itself was changed: " + e.Detail
	}
	return "an entry of kind " + string(e.Kind)
}
